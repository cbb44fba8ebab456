"""The control machine's tools: the lab's certificate authority. What runs on hosts never imports them."""
