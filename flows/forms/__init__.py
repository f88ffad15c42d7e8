"""Forms: typed functions that return the parts of a job, and the fields that they share. They import no Prefect."""
