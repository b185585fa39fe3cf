"""`saeflow publish`: the explorer as a folder of files, for any web host. Needs the extra "web".

    run      writing a site whole or not at all
    site     what it holds
    blocks   match tables, words and cards, in the blocks that a browser fetches
    flows    which features lie together in a block
    finding  the index of words, in shards
    packing  how a file is packed

The page is the explorer's own (`saeflow.web.static`); what a server answers there, `static/site` reads from these
files and grows in the browser. Imports no torch.
"""
