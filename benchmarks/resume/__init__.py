"""Whether a run goes on as fast from its ten-millionth row as from its tenth: ``python -m benchmarks resume``."""
