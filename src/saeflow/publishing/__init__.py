"""`saeflow publish`: the explorer as a folder of files, for any web host. Needs the extra "web".

    run           writes a site, whole or not at all
    site          the contents of a site
    blocks        match tables, words and cards, in the blocks that a browser fetches
    flows         which residual features share a block
    counterparts  matches in the dictionaries that features were compared with
    finding       the word index, in shards
    packing       the format of the files

The page is the explorer's own (`saeflow.web.static`); its `static/site` reads from these files what a server would
answer, and grows the graphs in the browser. Imports no torch.
"""
