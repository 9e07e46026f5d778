"""Batch inference: a version's archive over files of rows, by the code that serves online, resumable.

    job -> sources -> plan -> [unit: read -> questions -> predict -> commit] on Ray -> manifest

A job is what was asked. Its input is cut into units, row ranges that depend on the input and the job alone. Ray Data
hands units to actors; each actor holds the archive once, and commits a unit's output by itself in one step. What is
committed is never computed again, so a job that was killed goes on where it stopped.
"""
