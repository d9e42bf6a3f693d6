#pragma once

#include <vector>

// Returns the primes up to a limit.
std::vector<int> primes(int limit);
