"""What a person looks at: tables and pictures of a reconstruction."""
