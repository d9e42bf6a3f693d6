#include "count.h"

#include <assert.h>
#include <stdio.h>

int main(void) {
    struct counts counts = {0};
    int in_word = 0;
    count(&counts, "two wo", 6, &in_word);
    count(&counts, "rds\n", 4, &in_word);
    assert(counts.lines == 1 && counts.words == 2 && counts.bytes == 10);
    puts("ok");
    return 0;
}
