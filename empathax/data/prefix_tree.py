"""Token sequences with common beginnings, laid out once: the prefix tree of docs/prefix_tree.md.

A compressed (radix) trie: each node is a run of tokens without a branch, compared and copied as whole arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int32


@dataclass(frozen=True)
class ScoredSequence:
    """A prompt and the reply whose log-probability is wanted; `sequence_id` is its number in the data set."""

    prompt_ids: Int32[np.ndarray, " prompt"]
    reply_ids: Int32[np.ndarray, " reply"]
    sequence_id: int

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and reply."""
        return len(self.prompt_ids) + len(self.reply_ids)

    def token_ids(self) -> Int32[np.ndarray, " tokens"]:
        """Prompt, then reply."""
        return np.concatenate([self.prompt_ids, self.reply_ids]).astype(np.int32, copy=False)


@dataclass(frozen=True)
class Tree:
    """Depth-first preorder of a trie of S sequences, and the gather list of their M reply tokens.

    Token i sees token j exactly when j <= i < subtree_end[j]. The hidden state at query_index[m] predicts target_id[m],
    a token of the reply of sequence sequence_index[m]; a sequence's entries are contiguous and in order.
    """

    token_ids: Int32[np.ndarray, " T"]
    positions: Int32[np.ndarray, " T"]
    subtree_end: Int32[np.ndarray, " T"]
    query_index: Int32[np.ndarray, " M"]
    target_id: Int32[np.ndarray, " M"]
    sequence_index: Int32[np.ndarray, " M"]
    sequence_ids: Int32[np.ndarray, " S"]

    @property
    def num_tokens(self) -> int:
        """Tokens laid out."""
        return len(self.token_ids)

    @property
    def num_trained(self) -> int:
        """Reply tokens scored (M)."""
        return len(self.target_id)


@dataclass
class _Node:
    """A run of tokens; `start` is the depth of its first token."""

    token_ids: np.ndarray
    start: int
    children: dict[int, _Node] = field(default_factory=dict)
    num_below: int = 0  # tokens of this run and of all runs below it
    offset: int = 0  # index of the first token in the layout


class PrefixTrie:
    """A growing trie; `num_tokens` is the size it would have as a `Tree`."""

    def __init__(self, share: bool = True) -> None:
        self.num_tokens = 0
        self._share = share
        self._roots: dict[int, _Node] = {}

    def insert(self, token_ids: Int32[np.ndarray, " tokens"]) -> None:
        """Adds one sequence."""
        children, depth = self._roots, 0
        while depth < len(token_ids):
            rest = token_ids[depth:]
            key = int(rest[0]) if self._share else -1 - len(self._roots)
            node = children.get(key)
            if node is None:
                node = children[key] = _Node(rest, depth)
                self.num_tokens += len(rest)
            else:
                _split(node, common_length(node.token_ids, rest))
            depth += len(node.token_ids)
            children = node.children

    def nodes(self) -> list[_Node]:
        """All runs in depth-first preorder, heaviest child first, with offsets set."""
        self._weigh()
        order: list[_Node] = []
        stack = self._sorted(self._roots)
        offset = 0
        while stack:
            node = stack.pop()
            node.offset = offset
            offset += len(node.token_ids)
            order.append(node)
            stack.extend(self._sorted(node.children))
        return order

    def find(self, token_ids: Int32[np.ndarray, " tokens"], root: int) -> Int32[np.ndarray, " tokens"]:
        """Layout index of every token of an inserted sequence; `root` = its insertion number (used without sharing)."""
        pieces: list[np.ndarray] = []
        children, depth = self._roots, 0
        while depth < len(token_ids):
            node = children[int(token_ids[depth]) if self._share else -1 - root]
            pieces.append(np.arange(node.offset, node.offset + len(node.token_ids), dtype=np.int32))
            depth += len(node.token_ids)
            children = node.children
        return np.concatenate(pieces)

    def _weigh(self) -> None:
        order, stack = [], list(self._roots.values())
        while stack:
            node = stack.pop()
            order.append(node)
            stack.extend(node.children.values())
        for node in reversed(order):
            node.num_below = len(node.token_ids) + sum(child.num_below for child in node.children.values())

    def _sorted(self, children: dict[int, _Node]) -> list[_Node]:
        """Children for a stack: the one to visit first is last; equal weights keep the order of insertion."""
        nodes = list(children.values())
        if self._share:
            nodes.sort(key=lambda node: -node.num_below)
        return nodes[::-1]


def build_tree(sequences: Sequence[ScoredSequence], share: bool = True) -> Tree:
    """Lays out `sequences` (each prompt and reply non-empty) as one tree; share=False gives each a chain of its own."""
    trie = PrefixTrie(share)
    token_ids = [sequence.token_ids() for sequence in sequences]
    for ids in token_ids:
        trie.insert(ids)
    nodes = trie.nodes()
    lengths = [len(node.token_ids) for node in nodes]
    indices = [trie.find(ids, root) for root, ids in enumerate(token_ids)]
    queries = [index[len(s.prompt_ids) - 1 : -1] for index, s in zip(indices, sequences, strict=True)]
    return Tree(
        token_ids=joined([node.token_ids for node in nodes]),
        positions=joined([np.arange(node.start, node.start + len(node.token_ids)) for node in nodes]),
        # All tokens of a run end at the same place: nothing branches off before its last one.
        subtree_end=np.repeat([node.offset + node.num_below for node in nodes], lengths).astype(np.int32),
        query_index=joined(queries),
        target_id=joined([sequence.reply_ids for sequence in sequences]),
        sequence_index=np.repeat(np.arange(len(sequences)), [len(q) for q in queries]).astype(np.int32),
        sequence_ids=np.array([sequence.sequence_id for sequence in sequences], np.int32),
    )


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest common prefix of two sequences."""
    length = min(len(a), len(b))
    different = a[:length] != b[:length]
    return int(different.argmax()) if different.any() else length


def _split(node: _Node, length: int) -> None:
    """Cuts a run after `length` tokens; the node keeps the first part."""
    if length == len(node.token_ids):
        return
    rest = _Node(node.token_ids[length:], node.start + length, node.children)
    node.children = {int(rest.token_ids[0]): rest}
    node.token_ids = node.token_ids[:length]


def joined(arrays: Sequence[np.ndarray]) -> Int32[np.ndarray, " n"]:
    """The arrays one after another as int32; empty for none."""
    return np.concatenate([np.zeros(0, np.int32), *arrays]).astype(np.int32)
