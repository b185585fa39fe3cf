"""Language models behind the chat API of OpenAI, used as judges and for labels. No torch.

endpoint   one endpoint: when requests go out, what is retried, and a key that is never shown
answers    answers on disk, named by what was asked: a rerun, or a run after a kill, asks only the rest
"""
