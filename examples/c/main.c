#include "count.h"

#include <stdio.h>

int main(void) {
    struct counts counts = {0};
    char buffer[65536];
    int in_word = 0;
    size_t len;
    while ((len = fread(buffer, 1, sizeof buffer, stdin)) > 0)
        count(&counts, buffer, len, &in_word);
    printf("%zu lines, %zu words, %zu bytes\n", counts.lines, counts.words, counts.bytes);
    return ferror(stdin) != 0;
}
