// syntax=example.com/frontend
{}
