"""The parts of vs_peers.py: what is compared, the files, the runs, and the table."""
