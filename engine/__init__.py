"""PACD Lab's engine: poison, retrain, certify. It imports no Streamlit, and Plotly in figures and HTML report alone.

The import line; every module or folder may import only what comes before it (tests/test_line.py):

    random draws, graphs, settings
        streams → replay → compiling → choices → config → overrides → paper → presets → costs
    data
        → datasets → data → augmentation → squeezing
    networks and certificates
        → models → smoothing → votes → certification → sequential → metrics → spread
    training and attack
        → solvers → hypergradient → toy → training → threat → attacks
    what is seen and kept
        → perception → abx → handwriting → status → records → exhibit → poison_format → poison_file → index → stages
    what is said
        → report → grid
    one run
        → experiment → jobs → worker
    many runs
        → follow → studies
    figures
        → figures → html_report
    Python and command line
        → api → __main__
"""
