"""What an approved study does here: epochs, rounds, releases, letters, its end. Decides no policy."""
