package example;

import java.util.Arrays;
import java.util.List;
import java.util.TreeMap;
import java.util.stream.Collectors;

/** Prints which of its arguments are anagrams of each other. */
public final class Anagrams {
    private Anagrams() {}

    static String key(String word) {
        char[] letters = word.toLowerCase().toCharArray();
        Arrays.sort(letters);
        return new String(letters);
    }

    static List<List<String>> groups(List<String> words) {
        return words.stream()
            .collect(Collectors.groupingBy(Anagrams::key, TreeMap::new, Collectors.toList()))
            .values().stream()
            .filter(group -> group.size() > 1)
            .toList();
    }

    public static void main(String[] args) {
        if (args.length == 1 && args[0].equals("--test")) {
            assert groups(List.of("Tea", "eat", "cup")).equals(List.of(List.of("Tea", "eat")));
            return;
        }
        groups(List.of(args)).forEach(group -> System.out.println(String.join(" = ", group)));
    }
}
