#!/usr/bin/env bash
# torch.tensor and torch.asarray of an object that is read element by element: whatever error its __getitem__ raises is
# lost, and a ValueError about its shape comes instead, without a cause. So a MemoryError or an error of a lazy reader is
# taken for bad data, and a Ctrl-C that arrives while a file of weights is read (safetensors gives torch a storage, which
# is such an object) ends a program as if the file were damaged. numpy.asarray passes the error on, and torch one of
# __len__. It has been meant so since 2018 (pytorch/pytorch, pull request 7583), and no page of the documentation says it.
#
# Seen with torch 2.13.0, numpy 2.4.6, Python 3.11, Linux x86-64, 2026-12-01:
#   torch.tensor, KeyboardInterrupt of __getitem__: ValueError: could not determine the shape of object type 'Rows'
#   torch.tensor, KeyboardInterrupt of __len__: KeyboardInterrupt
#   numpy.asarray, KeyboardInterrupt of __getitem__: KeyboardInterrupt
# and the same of MemoryError and of an error of one's own.
#
# Fails where torch passes on an error of __getitem__, or chains it.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$folder/bin/python" - <<'PYTHON'
import sys

import numpy
import torch


class Mine(Exception):
    pass


class Rows:
    def __init__(self, error, place):
        self.error, self.place = error, place

    def __len__(self):
        if self.place == "__len__":
            raise self.error
        return 2

    def __getitem__(self, index):
        raise self.error


def said(make, error, place):
    try:
        make(Rows(error, place))
    except BaseException as caught:
        print(f"{make.__module__}.{make.__name__}, {error.__name__} of {place}: {type(caught).__name__}: {caught}")
        return caught
    return None


changed = False
for error in (KeyboardInterrupt, MemoryError, Mine):
    for make in (torch.tensor, torch.asarray):
        caught = said(make, error, "__getitem__")
        changed |= not isinstance(caught, ValueError) or caught.__cause__ is not None or caught.__context__ is not None
        changed |= not isinstance(said(make, error, "__len__"), error)
    changed |= not isinstance(said(numpy.asarray, error, "__getitem__"), error)
sys.exit("it changed" if changed else 0)
PYTHON
