"""PACD Lab's engine: poison, retrain, certify. It imports neither Streamlit nor Plotly (but for its figures).

The import line; every module may import only modules to its left (tests/test_line.py):

    streams → replay → compiling → config → paper → presets → datasets → data → augmentation → squeezing → models
            → smoothing → votes → certification → sequential → metrics → solvers → hypergradient → toy → training
            → threat → attacks → perception → abx → handwriting → records → poison_file → commands → wording
            → sentences → grid → tables → costs → report → index → stages → figures → attack_figures → pictures
            → image_figures → grid_figures → toy_figures → figure_data → html_report → problem → victims → more_draws
            → recorder → context → checkpoint → poisoning → retraining → experiment → jobs → studies → study_kinds
            → study_tables → study_figures → lesson_figures → follow → study_commands → api → __main__
"""
