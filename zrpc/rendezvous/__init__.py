"""Where a group without a broker of its own meets: the process of rank 0 embeds one, and tells the others its address."""
