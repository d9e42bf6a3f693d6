#include "sieve.hpp"

std::vector<int> primes(int limit) {
    std::vector<bool> composite(limit < 0 ? 1 : limit + 1);
    std::vector<int> found;
    for (int number = 2; number <= limit; ++number) {
        if (composite[number]) continue;
        found.push_back(number);
        for (long multiple = 1L * number * number; multiple <= limit; multiple += number) composite[multiple] = true;
    }
    return found;
}
