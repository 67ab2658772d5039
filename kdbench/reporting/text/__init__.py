"""Tables and leaderboards as text: Markdown, LaTeX, CSV, HTML, plain."""
