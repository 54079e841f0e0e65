"""Aggregation: from the sites' updates of a round to the next global state. numpy only.

Every rule is a pure function of the updates. Its result does not depend on the order of the replies, to the last bit.
"""
