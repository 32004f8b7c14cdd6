"""Real processes under mixed load, while they, their broker and their network are mistreated at random."""
