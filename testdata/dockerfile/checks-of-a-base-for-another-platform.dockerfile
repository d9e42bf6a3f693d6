FROM other
