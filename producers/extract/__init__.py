"""What a provider's response says was used, in the contract's words and inclusive counts.

Objects of the providers' own clients and plain dicts are read alike. ``input_tokens`` includes
cached, cache-write, audio and image tokens, ``output_tokens`` includes reasoning and audio tokens,
whatever the provider's own way of counting is. What is not recognised is never guessed.
"""

from producers.extract.responses import usage_of
from producers.extract.streams import StreamUsage
from producers.extract.usage import Usage

__all__ = ["StreamUsage", "Usage", "usage_of"]
