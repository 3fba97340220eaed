"""The parts that preset `mini` alone has."""
