"""Benchmark datasets as their makers publish them: which files a part holds, and what they mean."""
