"""What jobs take, of memory, disk, time and GPUs, said before they run, and whether it fits."""
