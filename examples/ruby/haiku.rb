# Says how many syllables each of its arguments has.

def syllables(word)
  word.downcase.sub(/e\z/, "").scan(/[aeiouy]+/).size.clamp(1, nil)
end

ARGV.each { |word| puts "#{word}: #{syllables(word)}" } if $PROGRAM_NAME == __FILE__
