"""Starting and ending the hub's processes on one machine, and leaving none behind."""
