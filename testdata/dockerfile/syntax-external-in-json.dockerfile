{"syntax": "example.com/frontend", "x": 1}
