"""The same operators in plain torch: slow, obvious, the definition that tests and benchmarks compare with."""
