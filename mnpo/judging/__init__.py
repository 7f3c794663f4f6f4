"""The one way to judges and other models behind endpoints: every answer is stored before it is used, and paid for once.

- client: what benchmarks and oracles call. verdicts: what they do alike with their judges.
- requests: a request and its answer; what is sent, and by which key an answer is stored. replies: how one is read.
- session: the calls that get the missing answers, several at a time. budget: what they cost, and when it is spent.
- store: the answers on disk, and who is asking. endpoints: addresses and their keys. network: the connection to one.
"""
