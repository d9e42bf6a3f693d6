#include <cstdlib>
#include <iostream>

#include "sieve.hpp"

int main(int argc, char **argv) {
    const char *separator = "";
    for (int prime : primes(argc > 1 ? std::atoi(argv[1]) : 100)) {
        std::cout << separator << prime;
        separator = " ";
    }
    std::cout << "\n";
}
