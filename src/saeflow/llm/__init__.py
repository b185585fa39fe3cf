"""Language models behind the chat API of OpenAI: judges and labels ask them. No torch.

endpoint   one endpoint: when requests go out, what is tried again, and a key that shows nowhere
answers    answers on disk, named by what was asked: a rerun, or a run after a kill, asks only the rest
"""
