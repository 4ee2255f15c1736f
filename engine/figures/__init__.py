"""Plotly charts made from records alone (toy.py: of the game in the plane, with torch): binning and pivoting, no
statistics of their own, no Streamlit.

Each figure carries its text alternative (`style.alt`) and says in its subtitle on how many images and victims it rests.
Backgrounds are transparent and text takes the page's colour, so that figures work on light and dark pages.
"""
