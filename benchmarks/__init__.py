"""Speed as ratios to the plainest correct implementation, measured in alternation on one machine."""
