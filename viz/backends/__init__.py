"""Backends: a scene goes in, a file comes out.

`svg` and `mpl` draw one step (a still picture; `mpl` also a GIF), `html` packs scenes and player into one
page that needs no server. They take shapes from the scene and colours from the palette, nothing else.
"""
