"""PACD Lab's engine: poison, retrain, certify. It imports neither Streamlit nor Plotly (but for its figures).

The import line; every module may import only modules to its left (tests/test_line.py):

    random draws, graphs, settings
        streams → replay → compiling → config → overrides → paper → presets
    data
        → datasets → data → augmentation → squeezing
    networks and certificates
        → models → smoothing → votes → certification → sequential → metrics → spread
    training and attack
        → solvers → hypergradient → toy → training → threat → attacks
    what is seen, kept and said
        → perception → abx → handwriting → records → poison_file → commands → wording
        → citations → sentences → grid → tables → costs → report → index → stages
    figures
        → figures → comparison_figures → attack_figures → pictures → image_figures → grid_figures → toy_figures
        → figure_data → html_report
    one run
        → problem → victims → more_draws → recorder → context → checkpoint → poisoning → retraining
        → experiment → environment → jobs
    many runs
        → studies → study_kinds → study_tables → study_differences → study_figures → lesson_figures
    command line and Python
        → follow → study_commands → api → __main__
"""
