//! Prints its arguments as Roman numerals.

const NUMERALS: [(u32, &str); 13] = [
    (1000, "M"),
    (900, "CM"),
    (500, "D"),
    (400, "CD"),
    (100, "C"),
    (90, "XC"),
    (50, "L"),
    (40, "XL"),
    (10, "X"),
    (9, "IX"),
    (5, "V"),
    (4, "IV"),
    (1, "I"),
];

fn roman(mut number: u32) -> String {
    let mut text = String::new();
    for (value, numeral) in NUMERALS {
        while number >= value {
            text += numeral;
            number -= value;
        }
    }
    text
}

fn main() {
    for argument in std::env::args().skip(1) {
        match argument.parse() {
            Ok(number) => println!("{number} is {}", roman(number)),
            Err(error) => {
                eprintln!("{argument}: {error}");
                std::process::exit(1);
            }
        }
    }
}

#[test]
fn numerals_are_subtracted_where_they_must() {
    assert_eq!(roman(2026), "MMXXVI");
    assert_eq!(roman(1994), "MCMXCIV");
}
