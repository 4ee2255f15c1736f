"""What a run is in numbers and words: report, tables, sentences, plain names, its command, and whose work it is."""
