"""The explorer: `saeflow serve`, one local page over an atlas, with an API of JSON. Needs the extra "web".

    access     who may ask: token, Host, Origin, sizes, how many at once; an ASGI middleware
    asked      what requests hold, answers what answers hold: the OpenAPI schema is made of these
    explorer   what is explored: atlas, words, results, the desk where the model works
    graphs, features, plans, text, pages   one kind of request each
    desk       one thread in which the model is loaded and works; no torch by itself
    live       what the desk does with the model: the only file that imports torch
    app, server   put together, and run

Nothing here imports torch before a model is asked for.
"""
