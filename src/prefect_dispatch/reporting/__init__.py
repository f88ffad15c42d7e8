"""Reports as Markdown, tables, data frames and HTML."""
