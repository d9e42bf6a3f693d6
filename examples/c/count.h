#ifndef COUNT_H
#define COUNT_H

#include <stddef.h>

struct counts {
    size_t lines, words, bytes;
};

/* Adds what a piece of text holds; in_word says whether the piece before it ended within a word. */
void count(struct counts *counts, const char *text, size_t len, int *in_word);

#endif
