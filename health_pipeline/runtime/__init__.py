"""What the commands do: run jobs in this process, keep servers up, show what there is."""
