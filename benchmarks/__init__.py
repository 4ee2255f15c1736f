"""Speed as ratios to plain code and to a peer, beside what the machine can do, measured in alternation."""
