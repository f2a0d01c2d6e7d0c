"""What every long run needs: files that are whole or not there, Ctrl-C between steps, the memory in use."""
