require_relative "haiku"

{ "frog" => 1, "ancient" => 2, "splash" => 1, "silence" => 2 }.each do |word, expected|
  raise "#{word}: #{syllables(word)}" unless syllables(word) == expected
end
puts "ok"
