"""Plotly figures built in Python, and the page that draws them."""
