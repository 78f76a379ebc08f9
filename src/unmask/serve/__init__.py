"""The reward server: rewards of this package, or one's own, for trainers on other machines.

What is spoken stands in `unmask.rewards.protocol`, which the client `Remote` shares. Here, `worker` runs a reward in a
thread of its own, `images` opens pictures from strangers, `app` is the HTTP side, `server` the process.
"""

from unmask.serve.server import serve

__all__ = ["serve"]
