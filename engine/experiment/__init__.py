"""One run: problem, clean victims, poison and controls, more victims, certificates; its protocol, on one page."""
