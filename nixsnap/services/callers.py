"""Clients of gRPC calls as callers: one whose deadline passes, who cancels or whose connection ends has gone."""

from __future__ import annotations

import grpc

from nixsnap.nix.caller import Caller


def caller_of(context: grpc.ServicerContext) -> Caller:
    """The caller that a call is made for; it goes when the call is over, whoever ends it."""
    caller = Caller()
    if not context.add_callback(caller.leave):  # it is over already
        caller.leave()
    return caller
