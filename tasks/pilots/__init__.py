"""What is asked before the rest: a pilot that is judged, and the items that a cascade learns from."""
