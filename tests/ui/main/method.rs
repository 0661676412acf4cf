struct Program;

impl Program {
    #[greenhack::main]
    fn main(&self) {}

    #[greenhack::test]
    fn test(self) {}
}

fn main() {
    Program.main();
    Program.test();
}
